"""Recipes of the ready models; each module says what it trains and how long it takes."""
