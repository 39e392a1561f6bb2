"""The algorithms: one ``train``, and what each class puts in its place."""
