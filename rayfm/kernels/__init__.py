"""Compiled loops: arrays in, arrays out. The only home of Numba.

A kernel checks nothing (rows were checked when they were read) and raises nothing (it returns status numbers).
Importing this package imports Numba; compiling waits for the first call.
"""
