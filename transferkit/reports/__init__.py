"""What a person looks at: figures, thumbnails, TensorBoard's projector."""
