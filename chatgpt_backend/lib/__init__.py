"""The ground floor: what every app may use. Imports no app."""
