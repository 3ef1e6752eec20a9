"""Tables of the MagDiff paper: `python dev.py run -m benchmarks.protocol {ucf101,msrvtt,dreambooth,davis} --root DIR`."""
