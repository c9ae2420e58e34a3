"""How the values of Variables are spread over meshes of devices."""
