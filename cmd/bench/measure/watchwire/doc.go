// Package watchwire is a watch client that uses little CPU: it keeps a response as bytes
// and decodes only the fields that a measurement uses. A client that decodes every event
// into a message would use more of the cores than the server that it shares them with.
package watchwire
