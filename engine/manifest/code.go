package manifest

// Code is one Python block.
type Code struct {
	Pos        Pos // of the member that holds the block, such as map
	Python     Value[string]
	Entrypoint Value[string] // unset: the first function defined in the block
	// Text is where the first character of the Python source stands: the line after the indicator for a literal or
	// folded block, the value's own line otherwise.
	Text Pos
}
