"""Corrected rows back to files: chunks, object layouts folded back to events, friend trees and copies."""
