"""Image encoders behind one feature bundle."""
