"""What a classifier is worth: data sets, the rules they are scored by, attacks."""
