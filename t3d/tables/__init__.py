"""The paper's tables: cells of results, their layout and rendering, comparisons and the report."""
