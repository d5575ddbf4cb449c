"""What `robustvit_run.py` is made of: images, network, fine-tuning, scores, tables."""
