"""Tests of the packages; the folders mirror them."""
