package wal

// For tests outside of the package.
var (
	FixSegment  = fixSegment
	SegmentName = segmentName
)
