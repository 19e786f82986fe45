"""Prediction endpoints on Ray Serve."""
