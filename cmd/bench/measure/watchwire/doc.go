// Package watchwire is a watch client that costs little: it hands over the bytes
// of a response and decodes no more of them than a measurement looks at. A client
// that unpacks every event into a message of its own takes more of the cores that
// it shares with the server than the server does.
package watchwire
