"""Language models: the catalogue, the OpenAI client, the offline model."""
