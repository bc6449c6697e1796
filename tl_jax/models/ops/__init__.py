"""Operations with implementations that are faster than XLA's own on some platforms."""
