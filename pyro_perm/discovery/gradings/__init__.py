"""What a unit's entries may be multiplied by: one linear algebra, rules by family."""
