"""The paper's tables: the same objects shown to every model, its answers measured by named protocols."""
