"""The trainers: of an adapter for any base (`adapter_*`), and of the small model in its own stages."""
