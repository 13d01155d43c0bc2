"""File formats: adapter, compact folder, published checkpoint, merged model, peft's layout, hub repository, export."""

# by which a folder is known, before what reads it is imported
COMPACT_WEIGHTS = "backbone.safetensors"
PEFT_CONFIG = "adapter_config.json"
