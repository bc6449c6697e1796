"""How knowledge is carried over: what is frozen, what moves, at which rate, in which order."""
