"""Facilitators: who checks signed payments and moves the money, in this process or elsewhere."""
