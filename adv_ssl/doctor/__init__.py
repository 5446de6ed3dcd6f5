"""Which data sets are ready, what is wrong with the others, and how to get them."""
