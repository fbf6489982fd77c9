"""What a statement in the binlog does: a lexer and a grammar, pure."""
