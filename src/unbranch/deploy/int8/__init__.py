"""Quantisation to 8-bit integers: engines of other libraries, and a ladder of steps that are measured one by one."""
