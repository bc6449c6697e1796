"""Operations that are faster than the obvious ones on some machine, chosen by an attribute of the model."""
