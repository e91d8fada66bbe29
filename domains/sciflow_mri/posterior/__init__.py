"""From one slice of a scan to draws of its image, with everything that is known of them."""
