"""Several training runs and the table that compares them."""
