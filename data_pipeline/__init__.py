"""From raw text and code to Megatron's files and a manifest, without torch or megatron-core."""
