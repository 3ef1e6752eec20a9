"""The only package that imports ComfyUI: model patches, conditioning, loading, encoding and sampling."""
