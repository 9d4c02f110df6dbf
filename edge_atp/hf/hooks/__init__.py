"""Forward hooks that prune inside an unmodified model, and the bookkeeping that undoes them."""
