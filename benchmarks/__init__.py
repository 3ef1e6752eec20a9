"""Measurements that are not tests: quality of the small model, speed, and the demo."""
