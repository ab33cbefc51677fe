"""What tests share: small models and data, plain references, processes."""
