"""The page of a run: what is asked (`view`), how it is served (`server`), and who runs (`runfile`)."""
