"""MACs: of one call of a network, of one image under an arm, and the published figures."""
