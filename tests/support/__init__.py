"""What tests share: stand-ins, small checkpoints and runs, and the crash harness."""
