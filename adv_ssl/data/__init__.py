"""Images from disk to device: sources, host transforms, the loader, augmentation on device."""
