"""File formats: adapter, compact folder, published checkpoint, merged model, peft's layout, hub repository, export."""
