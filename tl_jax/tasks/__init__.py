"""Tasks: data, model and loss put together into the functions that training needs."""
