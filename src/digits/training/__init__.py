"""Splits and a recipe to trained weights; imports with torch alone."""
