"""Samplers as tables of numbers: settings and a schedule in, coefficients out, and the loop that runs them."""
