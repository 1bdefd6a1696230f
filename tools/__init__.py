"""For those who carry the project on: what other libraries make of it. No part of the wheel."""
