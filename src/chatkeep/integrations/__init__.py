"""Other libraries' conversations, kept here: one module for each, and nothing imported before it is used."""
