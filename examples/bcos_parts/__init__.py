"""What `bcos_compare.py` is made of."""
