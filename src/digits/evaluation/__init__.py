"""Answers to numbers, figures and tables."""
