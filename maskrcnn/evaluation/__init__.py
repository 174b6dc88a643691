"""Scores and pictures, from detections and annotations alone."""
