"""Reports: figures, thumbnails, tables of predictions, TensorBoard's projector."""
