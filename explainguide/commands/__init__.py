"""The commands; each module has HELP, EXAMPLE, add_arguments and run."""

__all__: list[str] = []
