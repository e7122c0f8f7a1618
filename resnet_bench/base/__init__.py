"""Rules that know no benchmark."""
