# cmake --install, and cpack for a Debian package: the program, the configs with the text that the tiny one trains on, scripts
# to launch runs, and the documents.
include(GNUInstallDirs)
install(TARGETS braid RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY configs kernels model DESTINATION ${CMAKE_INSTALL_DATADIR}/braid PATTERN "CMakeLists.txt" EXCLUDE)
install(DIRECTORY scripts/launch DESTINATION ${CMAKE_INSTALL_DATADIR}/braid/scripts USE_SOURCE_PERMISSIONS)
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES README.md LICENSE CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME braid)
set(CPACK_PACKAGE_CONTACT "Braid")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Pretraining of Qwen3-Next-style language models")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_STRIP_FILES ON)
include(CPack)
